# Rotary embedding and norms between the calls, of queries and keys only: gemma4's vision tower.
# block: Attention("Block")
# site: line 11: qkv qkv-together: q_proj k_proj v_proj
# site: line 24: o output-call: o_proj


class Block(nn.Module):
    def forward(self, hidden_states, position_embeddings, position_ids):
        cos, sin = position_embeddings

        query_states = self.q_proj(hidden_states).view(self.shape)
        query_states = self.q_norm(query_states)
        query_states = apply_multidimensional_rope(query_states, cos, sin, position_ids)
        query_states = query_states.transpose(1, 2)

        key_states = self.k_proj(hidden_states).view(self.shape)
        key_states = self.k_norm(key_states)
        key_states = apply_multidimensional_rope(key_states, cos, sin, position_ids)
        key_states = key_states.transpose(1, 2)

        value_states = self.v_proj(hidden_states).view(self.shape)
        value_states = self.v_norm(value_states)

        return self.o_proj(attend(query_states, key_states, value_states.transpose(1, 2)))
