# Both projections in one assignment of two values.
# block: GatedMLP("Block")
# site: line 8: mlp gated-mlp: gate_proj up_proj act_fn down_proj


class Block(nn.Module):
    def forward(self, x):
        return self.apply_mlp(x)
