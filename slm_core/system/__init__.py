"""What is asked of the operating system: durable files, locks, children that end with
their parent."""
