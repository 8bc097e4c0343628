# Comments, semicolons, long calls and an unusual self; only what changes is touched.
# block: Attention("Block")
# site: line 16: qkv qkv-together: q_proj k_proj v_proj
# site: line 26: o output-call: o_proj
# site: line 27: o output-call: o_proj


class Block(nn.Module):
    def forward(this, x, *, mask   = None):   # two   spaces
        """Attend.

            Kept as it is.
        """

        # heads = first
        shape = (x.size(0), -1); queries = this.q_proj(x) ; keys = this.k_proj(
            x  # the same
        ).view( shape )

        # values

        values = (
            this.v_proj(x)
            .view(shape)  # heads
        )
        if mask is None: return this.o_proj( attend(queries,keys,values) )
        return this . o_proj(attend(queries, keys, values, mask),)
