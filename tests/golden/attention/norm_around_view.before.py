# Norms around the projections of query and key: qwen3, lfm2, dots1.
# block: Attention("Block", o="out_proj")
# site: line 10: qkv qkv-together: q_proj k_proj v_proj
# site: line 13: o output-call: out_proj


class Block(nn.Module):
    def forward(self, hidden_states, position_embeddings):
        hidden_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query_states = self.q_norm(self.q_proj(hidden_states).view(hidden_shape)).transpose(1, 2)
        key_states = self.k_norm(self.k_proj(hidden_states).view(hidden_shape)).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        return self.out_proj(attend(query_states, key_states, value_states, *position_embeddings).flatten(2))
