# Each branch projects another input: idefics, mask2former.
# block: Attention("Block")
# site: line 14: qkv call-alone: q_proj
# site: line 16: qkv call-alone: k_proj
# site: line 17: qkv call-alone: v_proj
# site: line 19: qkv call-alone: k_proj
# site: line 20: qkv call-alone: v_proj
# site: line 21: o output-call: o_proj
# skip: line 14: qkv: not together: `self.k_proj` is called 2 times


class Block(nn.Module):
    def forward(self, hidden_states, key_value_states=None):
        query_states = self.q_proj(hidden_states).view(self.shape)
        if key_value_states is None:
            key_states = self.k_proj(hidden_states).view(self.shape)
            value_states = self.v_proj(hidden_states).view(self.shape)
        else:
            key_states = self.k_proj(key_value_states).view(self.shape)
            value_states = self.v_proj(key_value_states).view(self.shape)
        return self.o_proj(attend(query_states, key_states, value_states))
