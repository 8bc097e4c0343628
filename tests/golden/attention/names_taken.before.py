# New names cannot collide with a local, a global or a name in a nested function.
# block: Attention("Block")
# site: line 10: qkv qkv-together: q_proj k_proj v_proj
# skip: line 12: o: `self.o_proj(attend(first, second, third, k_3=lambda: k_2), value_2)` does not take exactly one positional argument


class Block(nn.Module):
    def forward(self, x, q=None):
        query, states = x.shape, []
        first = self.q_proj(x)
        second, third = self.k_proj(x), (self.v_proj(x))
        return self.o_proj(attend(first, second, third, k_3=lambda: k_2), value_2)
