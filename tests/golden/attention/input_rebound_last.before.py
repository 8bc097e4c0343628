# The input gets another value, but only from the last of the calls.
# block: Attention("Block")
# site: line 9: qkv qkv-together: k_proj v_proj q_proj
# site: line 12: o output-call: o_proj


class Block(nn.Module):
    def forward(self, query):
        key = self.k_proj(query)
        value = self.v_proj(query)
        query = self.q_proj(query)
        return self.o_proj(attend(query, key, value))
