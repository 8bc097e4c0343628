# Two groups in one class, of which each names its layers; the second has names of its own.
# block: SharedInput("Block", groups=(("linear_q", "linear_k"), ("k_proj", "q_proj")))
# site: line 8: linear shared-input: linear_q linear_k
# site: line 9: linear shared-input: q_proj k_proj

class Block(nn.Module):
    def forward(self, x, y):
        first = attend(self.linear_q(x), self.linear_k(x))
        second = attend(self.q_proj(y), self.k_proj(y))
        return first + second
