# The calls stand together in an inner block.
# block: Attention("Block")
# site: line 12: qkv qkv-together: q_proj k_proj v_proj
# site: line 15: o output-call: o_proj


class Block(nn.Module):
    async def forward(self, hidden_states):
        with torch.autocast("cuda", enabled=False):
            for _ in range(self.repeats):
                # one round
                queries = self.q_proj(hidden_states)
                keys = self.k_proj(hidden_states)
                hidden_states = attend(queries, keys, self.v_proj(hidden_states))
        return self.o_proj(hidden_states)
