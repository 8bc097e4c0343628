# Keys and values of an earlier layer where this one has none: gemma3n, gemma4. Never project what upstream does not.
# block: Attention("Block")
# site: line 13: qkv call-alone: q_proj
# site: line 21: qkv call-alone: k_proj
# site: line 23: qkv call-alone: v_proj
# site: line 27: o output-call: o_proj
# skip: line 21: qkv: not together: `self.q_proj(hidden_states)` and `self.k_proj(hidden_states)` stand in different blocks


class Block(nn.Module):
    def forward(self, hidden_states, position_embeddings, shared_kv_states):
        cos, sin = position_embeddings
        query_states = self.apply_linear(self.q_proj, hidden_states).view(self.shape)
        query_states = self.q_norm(query_states)
        query_states = apply_rotary_pos_emb(query_states, cos, sin, unsqueeze_dim=2)
        query_states = query_states.transpose(1, 2)

        if self.is_kv_shared_layer:
            key_states, value_states = shared_kv_states[self.layer_type]
        else:
            key_states = self.apply_linear(self.k_proj, hidden_states).view(self.shape)
            key_states = apply_rotary_pos_emb(self.k_norm(key_states), cos, sin, unsqueeze_dim=2).transpose(1, 2)
            value_states = self.apply_linear(self.v_proj, hidden_states).view(self.shape)
            value_states = self.v_norm(value_states).transpose(1, 2)

        attn_output = attend(query_states, key_states, value_states)
        return self.apply_o(attn_output)
