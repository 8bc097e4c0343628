# One projection yields gate and up, and the activation is a function.
# block: GatedMLP("Block", down="w2", gate_up="w12", activation_function="F.silu")
# site: line 8: mlp gated-mlp: w12 F.silu w2


class Block(nn.Module):
    def forward(self, x):
        return self.apply_mlp(x, F.silu)
