# The activation is a function: lfm2, and most remote code with w1, w2 and w3.
# block: GatedMLP("Block", gate="w1", up="w3", down="w2", activation_function="F.silu")
# site: line 8: mlp gated-mlp: w1 F.silu w3 w2


class Block(nn.Module):
    def forward(self, x):
        return self.apply_mlp(x, F.silu)
