# Keys and values of encoder states, unless the cache has them: whisper, bart, t5.
# block: SharedInput("Block")
# site: line 14: linear shared-input: k_proj v_proj


class Block(nn.Module):
    def forward(self, hidden_states, key_value_states, past_key_values=None):
        query_states = self.q_proj(hidden_states) * self.scaling
        current_states = key_value_states if key_value_states is not None else hidden_states
        if past_key_values is not None and past_key_values.is_updated:
            # reuse k, v of the cache
            key_states, value_states = past_key_values.keys, past_key_values.values
        else:
            key_states = self.k_proj(current_states).view(self.shape).transpose(1, 2)
            value_states = self.v_proj(current_states).view(self.shape).transpose(1, 2).contiguous()
            if past_key_values is not None:
                key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)
        return self.out_proj(attend(query_states, key_states, value_states))
