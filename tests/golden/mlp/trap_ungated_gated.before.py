# Trap: the second factor is another projection: this is a gated MLP.
# block: MLP("Block")
# site: line 10: mlp call-alone: fc1
# site: line 10: mlp call-alone: fc2
# skip: line 10: mlp: not an MLP: `self.activation_fn(self.fc1(x)) * self.fc3(x)` stands in between


class Block(nn.Module):
    def forward(self, x):
        return self.fc2(self.activation_fn(self.fc1(x)) * self.fc3(x))
