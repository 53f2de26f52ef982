//! What a command delivers, out of all that it could.

use clap::Args;
use weightsync::Result;
use weightsync::plan::{Plan, Selector};

/// What to select; what is left out selects all, what is given must all hold.
#[derive(Args, Debug)]
#[command(next_help_heading = "Selection")]
pub struct SelectArgs {
    /// Only tensors whose name matches; may be given several times
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// No tensors whose name matches; may be given several times
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Only these layers, the end excluded: 0..4, or one number
    #[arg(long, value_name = "FIRST..END", value_delimiter = ',', value_parser = range)]
    layers: Vec<(u32, u32)>,
    /// Only these experts, the end excluded: 0..4, or one number
    #[arg(long, value_name = "FIRST..END", value_delimiter = ',', value_parser = range)]
    experts: Vec<(u32, u32)>,
    /// Only these copies of the destination
    #[arg(long, value_name = "COPY", value_delimiter = ',')]
    copies: Vec<u32>,
    /// Only what is trained, by the "frozen" marks of both layouts
    #[arg(long, conflicts_with = "frozen")]
    trainable: bool,
    /// Only what is not trained
    #[arg(long)]
    frozen: bool,
    /// Only the draft model, by the "draft" marks of both layouts
    #[arg(long, conflicts_with = "no_draft")]
    draft: bool,
    /// Only the model without its draft
    #[arg(long)]
    no_draft: bool,
}

impl SelectArgs {
    /// The plan of what is selected.
    pub fn apply(&self, plan: Plan) -> Result<Plan> {
        let selector = Selector {
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            layers: self.layers.clone(),
            experts: self.experts.clone(),
            copies: self.copies.clone(),
            trainable: either(self.trainable, self.frozen),
            draft: either(self.draft, self.no_draft),
        };
        match selector == Selector::default() {
            true => Ok(plan),
            false => plan.select(&selector),
        }
    }
}

fn either(yes: bool, no: bool) -> Option<bool> {
    (yes || no).then_some(yes)
}

fn range(text: &str) -> std::result::Result<(u32, u32), String> {
    let number = |t: &str| t.trim().parse::<u32>().map_err(|e| format!("{t:?}: {e}"));
    match text.split_once("..") {
        Some((first, end)) => Ok((number(first)?, number(end)?)),
        None => {
            let one = number(text)?;
            Ok((one, one.saturating_add(1)))
        }
    }
}
