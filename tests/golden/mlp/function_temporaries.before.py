# The activation is a function, in steps: dropout after the MLP stays.
# block: GatedMLP("Block", gate="w1", up="w3", down="w2", activation_function="F.silu")
# site: line 8: mlp gated-mlp: w1 F.silu w3 w2


class Block(nn.Module):
    def forward(self, x):
        gate = F.silu(self.w1(x))
        x = gate * self.w3(x)
        x = self.w2(x)
        return F.dropout(x, p=self.dropout, training=self.training)
