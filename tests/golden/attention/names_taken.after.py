# New names cannot collide with a local, a global or a name in a nested function.
# block: Attention("Block")
# site: line 10: qkv qkv-together: q_proj k_proj v_proj
# skip: line 12: o: `self.o_proj(attend(first, second, third, k_3=lambda: k_2), value_2)` does not take exactly one positional argument


class Block(nn.Module):
    def forward(self, x, q=None):
        query, states = x.shape, []
        q_3, k_3, v_3 = self.apply_qkv(x)
        first = q_3
        second, third = k_3, (v_3)
        return self.o_proj(attend(first, second, third, k_3=lambda: k_2), value_2)
