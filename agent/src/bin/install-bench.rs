//! For `cargo bench-all install.`; see [`drophammer_agent::bench`].

use std::process::ExitCode;

fn main() -> ExitCode {
    drophammer_agent::bench::main()
}
