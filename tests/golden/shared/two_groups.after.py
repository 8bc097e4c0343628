# Two groups in one class, of which each names its layers; the second has names of its own.
# block: SharedInput("Block", groups=(("linear_q", "linear_k"), ("k_proj", "q_proj")))
# site: line 8: linear shared-input: linear_q linear_k
# site: line 9: linear shared-input: q_proj k_proj

class Block(nn.Module):
    def forward(self, x, y):
        q, k = self.apply_shared(x, self.linear_q, self.linear_k)
        first = attend(q, k)
        q_2, k_2 = self.apply_shared(y, self.q_proj, self.k_proj)
        second = attend(q_2, k_2)
        return first + second
