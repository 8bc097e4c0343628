# Something else draws random numbers between the calls, as the dropout of an adapter would.
# block: Attention("Block")
# site: line 12: qkv call-alone: q_proj
# site: line 14: qkv call-alone: k_proj
# site: line 15: qkv call-alone: v_proj
# site: line 16: o output-call: o_proj
# skip: line 13: qkv: not together: `self.gate(other_states)` stands between and may run another module, whose dropout draws random numbers


class Block(nn.Module):
    def forward(self, hidden_states, other_states):
        query_states = self.apply_linear(self.q_proj, hidden_states)
        gate = self.gate(other_states)
        key_states = self.apply_linear(self.k_proj, hidden_states)
        value_states = self.apply_linear(self.v_proj, hidden_states)
        return self.apply_o(attend(query_states, key_states, value_states) * gate)
