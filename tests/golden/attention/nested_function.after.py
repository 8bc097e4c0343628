# A call in a nested function runs at another time, and with another self perhaps.
# block: Attention("Block")
# site: line 15: qkv call-alone: q_proj
# site: line 17: qkv call-alone: v_proj
# site: line 18: o output-call: o_proj
# skip: line 13: qkv: not together: `self.k_proj(states)` stands in a nested function, lambda or class
# skip: line 13: qkv: `self.k_proj(states)` stands in a nested function, lambda or class


class Block(nn.Module):
    def forward(self, hidden_states):
        def keys(states):
            return self.k_proj(states)

        query_states = self.apply_linear(self.q_proj, hidden_states)
        key_states = checkpoint(keys, hidden_states)
        value_states = self.apply_linear(self.v_proj, hidden_states)
        return self.apply_o(attend(query_states, key_states, value_states))
