# Norms around the projections of query and key: qwen3, lfm2, dots1.
# block: Attention("Block", o="out_proj")
# site: line 10: qkv qkv-together: q_proj k_proj v_proj
# site: line 13: o output-call: out_proj


class Block(nn.Module):
    def forward(self, hidden_states, position_embeddings):
        hidden_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = self.apply_qkv(hidden_states)
        query_states = self.q_norm(q.view(hidden_shape)).transpose(1, 2)
        key_states = self.k_norm(k.view(hidden_shape)).transpose(1, 2)
        value_states = v.view(hidden_shape).transpose(1, 2)
        return self.apply_o(attend(query_states, key_states, value_states, *position_embeddings).flatten(2))
