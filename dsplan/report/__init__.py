"""What is printed: tables for people, documents for programs. Nothing here computes memory."""
