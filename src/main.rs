fn main() -> std::process::ExitCode {
    gpurun::main()
}
