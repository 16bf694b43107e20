use std::process::ExitCode;

fn main() -> ExitCode {
    drophammer_agent::main()
}
