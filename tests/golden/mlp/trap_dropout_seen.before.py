# Trap: what dropout gives is used elsewhere, too.
# block: MLP("Block", dropout="dropout")
# site: line 10: mlp call-alone: fc1
# site: line 11: mlp call-alone: fc2
# skip: line 11: mlp: not an MLP: the value of `h` in `h = self.dropout(self.activation_fn(self.fc1(x)))` is used elsewhere, too


class Block(nn.Module):
    def forward(self, x):
        h = self.dropout(self.activation_fn(self.fc1(x)))
        return self.fc2(h), h
