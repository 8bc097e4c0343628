# Trap: a local variable has the name of the module of functions.
# block: GatedMLP("Block", gate="w1", up="w3", down="w2", activation_function="F.silu")
# site: line 11: mlp call-alone: w1
# site: line 11: mlp call-alone: w3
# site: line 11: mlp call-alone: w2
# skip: line 11: mlp: not a gated MLP: `F.silu(self.w1(x))` stands in between


class Block(nn.Module):
    def forward(self, x, F):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))
