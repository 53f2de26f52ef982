//! Prints what it takes to bring thirteen real models from a trainer to an
//! engine, as the table of `docs/models.md`.
//!
//! ```sh
//! cargo run --release --example model_table
//! ```

#[path = "../tests/model_rows/mod.rs"]
mod model_rows;

use model_rows::{ROWS, Worked};
use weightsync::plan::decision::PlanOptions;

fn main() -> weightsync::Result<()> {
    println!("| model | source | destination | tensors | bytes | moved | pairs | coverage |");
    println!("|---|---|---|---:|---:|---:|---:|---:|");
    for row in &ROWS {
        let worked = Worked::of(row)?;
        let plan = worked.plan(&PlanOptions::default())?;
        println!("{}", worked.line(row, &plan)?);
    }
    Ok(())
}
