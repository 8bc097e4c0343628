# Queries and keys of positions, values without them: detr.
# block: SharedInput("Block", groups=(("q_proj", "k_proj"),))
# site: line 10: linear shared-input: q_proj k_proj


class Block(nn.Module):
    def forward(self, hidden_states, position_embeddings):
        query_key_input = hidden_states + position_embeddings if position_embeddings is not None else hidden_states

        query_states = self.q_proj(query_key_input).view(self.shape).transpose(1, 2)
        key_states = self.k_proj(query_key_input).view(self.shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(self.shape).transpose(1, 2)
        return self.o_proj(attend(query_states, key_states, value_states))
