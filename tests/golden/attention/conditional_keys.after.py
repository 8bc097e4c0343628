# Keys and values only where they are not cached: each call alone.
# block: Attention("Block", o="out_proj")
# site: line 12: qkv call-alone: q_proj
# site: line 17: qkv call-alone: k_proj
# site: line 18: qkv call-alone: v_proj
# site: line 19: o output-call: out_proj
# skip: line 17: qkv: not together: `self.k_proj(encoder_hidden_states)` takes another input than `self.q_proj(hidden_states)`


class Block(nn.Module):
    def forward(self, hidden_states, encoder_hidden_states, past_key_values=None):
        query_layer = self.apply_linear(self.q_proj, hidden_states).view(self.shape).transpose(1, 2)
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            key_layer = past_key_values.layers[self.layer_idx].keys
            value_layer = past_key_values.layers[self.layer_idx].values
        else:
            key_layer = self.apply_linear(self.k_proj, encoder_hidden_states).view(self.shape).transpose(1, 2)
            value_layer = self.apply_linear(self.v_proj, encoder_hidden_states).view(self.shape).transpose(1, 2)
        return self.apply_o(attend(query_layer, key_layer, value_layer))
