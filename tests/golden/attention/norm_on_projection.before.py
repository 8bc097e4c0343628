# Norms directly on the projections: olmo2, olmo3, minimax_m2.
# block: Attention("Block")
# site: line 9: qkv qkv-together: q_proj k_proj v_proj
# site: line 14: o output-call: o_proj


class Block(nn.Module):
    def forward(self, hidden_states):
        query_states = self.q_norm(self.q_proj(hidden_states))
        key_states = self.k_norm(self.k_proj(hidden_states))
        value_states = self.v_proj(hidden_states)
        # heads come later
        query_states = query_states.view(self.shape).transpose(1, 2)
        return self.o_proj(attend(query_states, key_states, value_states))
