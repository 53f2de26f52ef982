//! What a tensor is for: what layouts go by, instead of by its name.

use serde::{Deserialize, Serialize};

/// The part a tensor plays in a model. Weights are `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Token embedding `[vocab, hidden]`.
    Embed,
    /// Output head `[vocab, hidden]`; an alias of `Embed` where tied.
    LmHead,
    FinalNorm,
    InputNorm,
    PostAttentionNorm,

    /// `[q heads * head_dim, hidden]`, heads of one KV group side by side.
    QProj,
    KProj,
    VProj,
    OProj,
    QBias,
    KBias,
    VBias,
    OBias,
    /// Norm over one query head.
    QNorm,
    KNorm,
    /// One attention sink per query head.
    Sinks,

    /// Latent attention: query down projection, its norm, up projection.
    QAProj,
    QANorm,
    QBProj,
    /// Latent attention: `[kv_lora + rope, hidden]`, rope rows last.
    KvAProj,
    KvANorm,
    /// `[heads * (nope + v), kv_lora]`, per head `[nope | v]`.
    KvBProj,

    Gate,
    Up,
    Down,
    GateBias,
    UpBias,
    DownBias,

    /// `[experts, hidden]`.
    Router,
    /// A bias of the router's own linear map.
    RouterBias,
    /// What balances the experts, per expert: a buffer that training writes.
    ExpertBias,
    /// `[experts, rows, hidden]`.
    ExpertGate,
    ExpertUp,
    /// `[experts, hidden, cols]`.
    ExpertDown,
    ExpertGateBias,
    ExpertUpBias,
    ExpertDownBias,
    SharedGate,
    SharedUp,
    SharedDown,

    /// Multi-token prediction: norms of both inputs, their projection
    /// `[hidden, 2 * hidden]`, and the norm before the head.
    MtpEmbedNorm,
    MtpHiddenNorm,
    MtpProj,
    MtpFinalNorm,
}

impl Role {
    /// True for what has one slice per routed expert.
    pub fn is_expert(self) -> bool {
        use Role::*;
        matches!(
            self,
            ExpertGate | ExpertUp | ExpertDown | ExpertGateBias | ExpertUpBias | ExpertDownBias
        )
    }
}
