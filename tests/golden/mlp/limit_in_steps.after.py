# The same in steps: glm5_next.
# block: GatedMLP("Block", limit="swiglu_limit")
# site: line 8: mlp gated-mlp: gate_proj up_proj act_fn down_proj


class Block(nn.Module):
    def forward(self, x):
        # Key difference using clamping
        return self.apply_mlp(x, limit=self.swiglu_limit)
