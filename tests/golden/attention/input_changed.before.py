# Another name of the input is changed in place between the calls.
# block: Attention("Block")
# site: line 13: qkv call-alone: q_proj
# site: line 15: qkv call-alone: k_proj
# site: line 15: qkv call-alone: v_proj
# site: line 16: o output-call: o_proj
# skip: line 14: qkv: not together: `residual.mul_(self.scale)` stands between and changes a value in place


class Block(nn.Module):
    def forward(self, hidden_states):
        residual = hidden_states.view(-1, self.hidden_size)
        query_states = self.q_proj(hidden_states)
        residual.mul_(self.scale)
        key_states, value_states = self.k_proj(hidden_states), self.v_proj(hidden_states)
        return residual + self.o_proj(attend(query_states, key_states, value_states))
