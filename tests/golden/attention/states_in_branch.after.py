# As conditional_keys, with views on their own lines: bart, mbart, marian.
# block: Attention("Block", o="out_proj")
# site: line 12: qkv call-alone: q_proj
# site: line 17: qkv call-alone: k_proj
# site: line 18: qkv call-alone: v_proj
# site: line 22: o output-call: out_proj
# skip: line 17: qkv: not together: `self.k_proj(current_states)` takes another input than `self.q_proj(hidden_states)`


class Block(nn.Module):
    def forward(self, hidden_states, key_value_states=None, past_key_values=None):
        query_states = self.apply_linear(self.q_proj, hidden_states).view(self.shape).transpose(1, 2)
        current_states = key_value_states if key_value_states is not None else hidden_states
        if key_value_states is not None and past_key_values is not None:
            key_states, value_states = past_key_values.layers[self.layer_idx]
        else:
            key_states = self.apply_linear(self.k_proj, current_states)
            value_states = self.apply_linear(self.v_proj, current_states)
            key_states = key_states.view(self.shape).transpose(1, 2)
            value_states = value_states.view(self.shape).transpose(1, 2)
        attn_output = attend(query_states, key_states, value_states)
        attn_output = self.apply_o(attn_output)
        return attn_output
