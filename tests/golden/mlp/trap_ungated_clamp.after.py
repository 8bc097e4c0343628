# Trap: a clamp after the activation.
# block: MLP("Block")
# site: line 10: mlp call-alone: fc1
# site: line 11: mlp call-alone: fc2
# skip: line 10: mlp: not an MLP: `self.activation_fn(self.fc1(x)).clamp(max=self.limit)` stands in between


class Block(nn.Module):
    def forward(self, x):
        hidden = self.activation_fn(self.apply_linear(self.fc1, x)).clamp(max=self.limit)
        return self.apply_linear(self.fc2, hidden)
