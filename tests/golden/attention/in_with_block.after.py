# The calls stand together in an inner block.
# block: Attention("Block")
# site: line 12: qkv qkv-together: q_proj k_proj v_proj
# site: line 15: o output-call: o_proj


class Block(nn.Module):
    async def forward(self, hidden_states):
        with torch.autocast("cuda", enabled=False):
            for _ in range(self.repeats):
                # one round
                q, k, v = self.apply_qkv(hidden_states)
                queries = q
                keys = k
                hidden_states = attend(queries, keys, v)
        return self.apply_o(hidden_states)
