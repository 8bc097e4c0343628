# A projection in between, whose dropout draws: the low-rank projections of deepseek_v3.
# block: SharedInput("Block", groups=(("q_a_proj", "kv_a_proj_with_mqa"),))
# skip: line 9: linear: not together: `self.q_b_proj(self.q_a_layernorm(q_compressed))` stands between and may run another projection, whose dropout draws random numbers


class Block(nn.Module):
    def forward(self, hidden_states):
        q_compressed = self.q_a_proj(hidden_states)
        q_states = self.q_b_proj(self.q_a_layernorm(q_compressed))
        compressed_kv = self.kv_a_proj_with_mqa(hidden_states)
        return self.o_proj(attend(q_states, compressed_kv))
