# As mamba.
# block: LanguageModel("Model")
# site: line 10: loss loss-of-logits: lm_head


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        states = hidden_states.to(self.lm_head.weight.dtype)
        logits = loss = None
        if labels is not None:
            loss = self.apply_loss(states)(labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        if loss is None:
            logits = self.lm_head(states).float()

            loss = None
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
        )
