//! Writes the seeds into one directory a target, for a fuzzer to start from: `cargo run -p berth-fuzz --example seeds DIR`.

use std::{fs, path::Path};

fn main() -> std::io::Result<()> {
    let to = std::env::args().nth(1).unwrap_or_else(|| "fuzz/corpus".to_owned());
    for (number, seed) in berth_fuzz::seeds::all().iter().enumerate() {
        let dir = Path::new(&to).join(seed.target);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join(format!("seed-{number:03}")), &seed.bytes)?;
    }
    Ok(())
}
