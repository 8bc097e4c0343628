# No gate, and the activation is a function.
# block: MLP("Block", activation_function="F.gelu")
# site: line 8: mlp ungated-mlp: fc1 F.gelu fc2


class Block(nn.Module):
    def forward(self, x):
        return x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm(x)))))
