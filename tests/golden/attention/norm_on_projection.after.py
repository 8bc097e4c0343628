# Norms directly on the projections: olmo2, olmo3, minimax_m2.
# block: Attention("Block")
# site: line 9: qkv qkv-together: q_proj k_proj v_proj
# site: line 14: o output-call: o_proj


class Block(nn.Module):
    def forward(self, hidden_states):
        q, k, v = self.apply_qkv(hidden_states)
        query_states = self.q_norm(q)
        key_states = self.k_norm(k)
        value_states = v
        # heads come later
        query_states = query_states.view(self.shape).transpose(1, 2)
        return self.apply_o(attend(query_states, key_states, value_states))
