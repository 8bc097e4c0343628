# Queries changed in place before the other calls: the input could be the same tensor if a projection is an identity.
# block: Attention("Block")
# site: line 12: qkv call-alone: q_proj
# site: line 14: qkv call-alone: k_proj
# site: line 15: qkv call-alone: v_proj
# site: line 16: o output-call: o_proj
# skip: line 13: qkv: not together: `query_states /= math.sqrt(self.head_dim)` stands between and changes a value in place


class Block(nn.Module):
    def forward(self, hidden_states):
        query_states = self.q_proj(hidden_states)
        query_states /= math.sqrt(self.head_dim)
        key_states = self.k_proj(hidden_states)
        value_states = self.v_proj(hidden_states)
        return self.o_proj(attend(query_states, key_states, value_states))
