# Everything by position, and a joint loss of experts below.
# block: LanguageModel("Model")
# site: line 11: loss loss-of-logits: lm_head


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        hidden_states = outputs.last_hidden_state
        logits = self.lm_head(hidden_states)

        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)

        aux_loss = None
        if self.output_router_logits:
            aux_loss = load_balancing_loss_func(outputs.router_logits, self.num_experts)
            if labels is not None:
                loss += self.router_aux_loss_coef * aux_loss.to(loss.device)

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
        )
