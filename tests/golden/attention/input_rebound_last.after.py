# The input gets another value, but only from the last of the calls.
# block: Attention("Block")
# site: line 9: qkv qkv-together: k_proj v_proj q_proj
# site: line 12: o output-call: o_proj


class Block(nn.Module):
    def forward(self, query):
        q, k, v = self.apply_qkv(query)
        key = k
        value = v
        query = q
        return self.apply_o(attend(query, key, value))
