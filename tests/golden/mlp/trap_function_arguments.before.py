# Trap: the activation is given more than the gate.
# block: GatedMLP("Block", gate="w1", up="w3", down="w2", activation_function="F.gelu")
# site: line 11: mlp call-alone: w1
# site: line 11: mlp call-alone: w3
# site: line 11: mlp call-alone: w2
# skip: line 11: mlp: not a gated MLP: `F.gelu(self.w1(x), approximate="tanh")` stands in between


class Block(nn.Module):
    def forward(self, x):
        return self.w2(F.gelu(self.w1(x), approximate="tanh") * self.w3(x))
