# Four layers of one input, by their own names: the linear attention of qwen3_5.
# block: SharedInput("Block", groups=(("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),))
# site: line 11: linear shared-input: in_proj_qkv in_proj_z in_proj_b in_proj_a


class Block(nn.Module):
    def forward(self, hidden_states, cache_params=None):
        batch_size, seq_len, _ = hidden_states.shape

        # the convolution wants channels first
        in_qkv, in_z, in_b, in_a = self.apply_shared(hidden_states, self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a)
        mixed_qkv = in_qkv
        mixed_qkv = mixed_qkv.transpose(1, 2)

        z = in_z
        z = z.reshape(batch_size, seq_len, -1, self.head_v_dim)

        b = in_b
        a = in_a
        return self.out_proj(scan(self.conv1d(mixed_qkv), z, b.sigmoid(), a))
