# Two groups in one statement: each is in the other's way, since both draw.
# block: SharedInput("Block", groups=(("q_proj", "k_proj"), ("a_proj", "b_proj")))
# skip: line 9: linear: not together: `self.a_proj(y)` stands between and may run another projection, whose dropout draws random numbers
# skip: line 9: linear: not together: `self.q_proj(x)` stands between and may run another projection, whose dropout draws random numbers


class Block(nn.Module):
    def forward(self, x, y):
        return attend(self.q_proj(x), self.a_proj(y), self.k_proj(x), self.b_proj(y))
