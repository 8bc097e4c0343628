# As cohere.
# block: LanguageModel("Model")
# site: line 11: loss loss-of-logits: lm_head


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        hidden_states = outputs.last_hidden_state
        logits = loss = None
        if labels is not None:
            loss = self.apply_loss(hidden_states, multiplied=self.logit_scale)(labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        if loss is None:
            logits = self.lm_head(hidden_states)
            logits = logits * self.logit_scale  # main diff from Llama

            loss = None
            if labels is not None:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
        )
