# Norms on their own lines after the projections: gemma3, exaone4.
# block: Attention("Block")
# site: line 11: qkv qkv-together: q_proj k_proj v_proj
# site: line 18: o output-call: o_proj


class Block(nn.Module):
    def forward(self, hidden_states, position_embeddings):
        hidden_shape = (*hidden_states.shape[:-1], -1, self.head_dim)

        q, k, v = self.apply_qkv(hidden_states)
        query_states = q.view(hidden_shape).transpose(1, 2)
        key_states = k.view(hidden_shape).transpose(1, 2)
        value_states = v.view(hidden_shape).transpose(1, 2)

        query_states = self.q_norm(query_states)
        key_states = self.k_norm(key_states)

        attn_output = self.apply_o(attend(query_states, key_states, value_states, *position_embeddings))
        return attn_output
