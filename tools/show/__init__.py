"""What the commands show: tables, pictures, pages."""
