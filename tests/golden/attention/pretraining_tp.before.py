# llama up to 4.46: slices of the weights under a configuration, else the plain calls, all three in one branch.
# block: Attention("Block")
# site: line 20: qkv qkv-together: q_proj k_proj v_proj
# site: line 32: o output-call: o_proj


class Block(nn.Module):
    def forward(self, hidden_states):
        bsz, q_len, _ = hidden_states.size()

        if self.config.pretraining_tp > 1:
            slicing = self.head_dim // self.config.pretraining_tp
            query_slices = self.q_proj.weight.split(slicing, dim=0)
            query_states = [F.linear(hidden_states, query_slice) for query_slice in query_slices]
            query_states = torch.cat(query_states, dim=-1)
            key_states = torch.cat([F.linear(hidden_states, w) for w in self.k_proj.weight.split(slicing)], dim=-1)
            value_states = torch.cat([F.linear(hidden_states, w) for w in self.v_proj.weight.split(slicing)], dim=-1)

        else:
            query_states = self.q_proj(hidden_states)
            key_states = self.k_proj(hidden_states)
            value_states = self.v_proj(hidden_states)

        query_states = query_states.view(bsz, q_len, self.num_heads, self.head_dim).transpose(1, 2)
        attn_output = attend(query_states, key_states, value_states)

        if self.config.pretraining_tp > 1:
            attn_output = sum(
                F.linear(part, weight) for part, weight in zip(attn_output.split(1), self.o_proj.weight.split(1))
            )
        else:
            attn_output = self.o_proj(attn_output)
        return attn_output
