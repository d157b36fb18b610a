fn main() -> std::process::ExitCode {
    gpurun::cli::main()
}
