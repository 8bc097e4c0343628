# Trap: a norm between the projections: kosmos2.
# block: MLP("Block")
# site: line 10: mlp call-alone: fc1
# site: line 13: mlp call-alone: fc2
# skip: line 12: mlp: not an MLP: `self.ffn_layernorm(x)` stands in between


class Block(nn.Module):
    def forward(self, x):
        x = self.fc1(x)
        x = self.activation_fn(x)
        x = self.ffn_layernorm(x)
        return self.fc2(x)
